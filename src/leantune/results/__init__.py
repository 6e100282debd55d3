"""From records to tables, rankings and claims; publish, merge and reproduce."""

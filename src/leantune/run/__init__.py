"""One cell: the supervisor, its worker and phases, trials and step times, and the record that they
leave."""

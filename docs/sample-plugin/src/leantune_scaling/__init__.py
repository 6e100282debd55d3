"""Methods for LeanTune; the folder `methods/` beside this file holds them."""

"""What the Snakefile asks of a config, and starting Snakemake."""

"""The command `leantune`: one file for each subcommand, its flags beside what it does."""

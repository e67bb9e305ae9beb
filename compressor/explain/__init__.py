"""What is said about runs that were made: shown, compared, explained and made again."""

"""What every room needs: errors, files, numbers, processes, the console."""

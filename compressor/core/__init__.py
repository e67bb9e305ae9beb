"""The foundation of every room: errors, files, numbers, processes, the console."""

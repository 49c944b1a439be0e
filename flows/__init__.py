"""The flows: straight lines of tasks, one flow a file, and the command line that starts them."""

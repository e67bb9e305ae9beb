"""What tests share: the command, pico models, recipes."""

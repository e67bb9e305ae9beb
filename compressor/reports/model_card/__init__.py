"""Write a run's model card."""

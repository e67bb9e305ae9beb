"""Write a run's `report.html`."""

"""From a run's records to what a person reads. Nothing here runs a stage."""

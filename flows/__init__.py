"""The pipeline as Prefect flows, one file per verb that is scheduled."""

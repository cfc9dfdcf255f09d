"""The stages of the pipeline: Prefect tasks, each a few lines over the platform port."""

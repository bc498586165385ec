"""Runs and studies as pages: `page` for one run, `study` for many, from what a `run_folder` holds."""

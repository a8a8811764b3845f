"""Run many agents durably: jobs, workers, the SDK and the command line."""

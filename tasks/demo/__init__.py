"""The demo's task: triage of support tickets, with its data, labels and prompt."""

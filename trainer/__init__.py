"""The trainer: prepares chat data, fine-tunes a causal language model on it, evaluates and packages it.

Ships alone to the training environment: nothing here imports the orchestrator's packages.
"""

"""The Azure Machine Learning platform: a workspace, reached through azure-ai-ml and plain HTTP."""

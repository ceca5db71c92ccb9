"""The FineTune operator: from a base model and a data set to a tuned model that serves users."""

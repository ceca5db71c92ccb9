"""The API `finetune.dev/v1alpha1`: one source for validation, the CRD and the reference page."""

"""Pure builders: values in, manifests out. No client, clock or environment is known here."""

"""Raw rows → checked, cleaned, split, masked and tokenised arrays."""

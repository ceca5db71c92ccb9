"""The blocks of `FineTune.spec`, each in the file of its name, with the rules on it alone (`rules` has those across blocks)."""

"""The blocks of `FineTune.spec`, each in the file of its name, with what is said of it alone."""

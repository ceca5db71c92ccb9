NAMES=("trainer","operator","router")

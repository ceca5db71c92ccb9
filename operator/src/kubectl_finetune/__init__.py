"""`kubectl finetune`: a FineTune at a glance, its report, and a hand on its rollout.

It speaks to the cluster through kubectl alone, and so with the user's own credentials and rights; what things are called it knows
from the operator.
"""

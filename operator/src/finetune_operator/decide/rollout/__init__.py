"""One rollout, one cycle further: from a canary that nobody has to the arm that everybody has, or back.

    Deploying → Connecting → Shifting ⇄ Holding → Baking → Promoted
                     any of them → RollingBack → RolledBack

A weight is committed in `status.rollout` before it is pushed, and a step begins only when every ready router says that it is
in force. Weights grow only on evidence; a rollback needs none from the routers to begin.

`machine` takes the cycle; what is done in a state is in the file of its name.
"""

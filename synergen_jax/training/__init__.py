"""What is learned, and how: losses, the step, the loop, checkpoints.

Read objective.py with losses.py (batch to loss), train.py (the step and the loop), apply_gradients.py with optimiser.py
(how parameters and rows move), then checkpoint.py and identity.py (which checkpoints a run may go on from).
"""

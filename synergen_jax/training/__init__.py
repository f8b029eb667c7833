"""What is learned, and how: losses, the step, the loop, checkpoints.

Read objective.py with batch_loss.py and losses.py (batch to loss and gradients), train_step.py and loop.py, then
apply_gradients.py with optimiser.py (how parameters and rows move), checkpoint.py and identity.py (which checkpoints a run
may go on from).
"""

"""What a run would need before it runs: memory, traffic and FLOPs; and logs that are made up.

Read plan.py, then hlo.py (reads compiled programs), flops.py (counts what the model asks for), synthetic.py.
"""

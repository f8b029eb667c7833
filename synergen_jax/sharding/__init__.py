"""What lies where: the mesh of devices, and tables that are split by row over all of it.

Read device_mesh.py, then table.py.
"""

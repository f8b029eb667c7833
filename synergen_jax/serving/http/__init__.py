"""The engine over HTTP: JSON in, JSON out, problems as RFC 9457 has them.

Read app.py (the endpoints), over bodies.py (what is asked), answers.py (what is answered) and problems.py (what is
refused); door.py is what every request passes, server.py starts and ends it all. Only this package imports FastAPI,
pydantic, uvicorn and prometheus_client; `pip install 'synergen-jax[serve]'` brings them.
"""

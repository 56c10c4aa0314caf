"""Globus on this machine: stand-ins for the hosted services, a real RabbitMQ, genuine endpoint agents."""

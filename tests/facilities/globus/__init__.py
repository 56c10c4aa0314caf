"""Globus on this machine: stand-ins of the hosted services, a real RabbitMQ, real endpoint agents."""

"""Tests that need Neutron's libraries: scripts/openstack-lab runs them in its virtual environment."""

"""Tests of networking_vifswitch. Those in with_neutron need Neutron's libraries."""

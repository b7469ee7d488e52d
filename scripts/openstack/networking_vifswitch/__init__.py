"""Neutron on vifswitch: ML2 mechanism driver, trunk and QoS drivers, and the L2 agent.

    driver.py, trunk.py, qos.py   in the Neutron server
    main.py                       the agent: reads options, connects what follows
    agent.py                      its loop: pull from Neutron, write to the switch, report to Neutron
    rpc.py                        RPC with the Neutron server
    facts.py                      what Neutron says about this host, as plain data
    desired.py, limits.py         what the switch has to contain for that
    reconcile.py                  the difference, as requests
    switch.py                     the API of the switch
    reports.py                    which ports are up or down for Neutron
    links.py                      taps that appear on this host

Without Neutron's libraries: agent, desired, facts, limits, links, reconcile, reports, switch.
"""

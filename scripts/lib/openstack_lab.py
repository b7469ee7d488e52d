"""Plays scripts/openstack-lab: starts the services, and prints a line for each check.

openstack_lab.py play VENV VIFSWITCH neutron|nova|whole CHURN SEED
"""

import os
import shutil
import sys
import time
import traceback

from guests import Failed

import openstack_churn
import openstack_faults
import openstack_neutron
import openstack_nova
from openstack_services import RUN, Lab

# seconds between two kills. An agent takes seconds of the processor to start, RabbitMQ ten: they have to live for a while
KILLS = {"agent": (2, 8), "switch": (1, 6)}
MORE_KILLS = {"agent": (8, 20), "switch": (2, 8), "rabbitmq": (20, 40)}


class Checks:
    def __init__(self):
        self.passed, self.failed = 0, []

    def __call__(self, sentence, function):
        began = time.monotonic()
        try:
            result = function()
            if result is False or result is None:
                raise Failed("it does not hold")
        except Exception as problem:
            self.failed.append(sentence)
            print(f"   FAILED {sentence} ({time.monotonic() - began:.1f} s): {problem}", flush=True)
            if not isinstance(problem, Failed):
                traceback.print_exc(file=sys.stdout)
            return
        self.passed += 1
        print(f"   ok    {sentence} ({time.monotonic() - began:.1f} s)", flush=True)


def play(venv, vifswitch, what, churn, seed):
    check, began = Checks(), time.monotonic()

    def step(text):
        print(f"\n== {text} ({time.monotonic() - began:.0f} s)", flush=True)

    lab = Lab(venv, vifswitch, what != "neutron")
    try:
        step("MariaDB, RabbitMQ, Neutron, and hosts with a switch and an agent each")
        lab.start_network()
        lab.start_services()
        for host in lab.hosts.values():
            host.start()
        if what != "nova":
            alone(lab, check, step, int(churn), int(seed))
        if what != "neutron":
            openstack_nova.scenarios(lab, check, step)
    except Exception as problem:
        check.failed.append("the lab")
        print(f"   FAILED the lab: {problem}", flush=True)
        traceback.print_exc(file=sys.stdout)
    if check.failed:
        logs(lab)
    lab.stop()
    if keep := os.environ.get("LAB_LOGS"):
        shutil.copytree(f"{RUN}/log", keep, dirs_exist_ok=True)
    print(f"\nopenstack-lab: {check.passed} checks passed, {len(check.failed)} failed, {time.monotonic() - began:.0f} s")
    return 1 if check.failed else 0


def alone(lab, check, step, churn, seed):
    """What needs no Nova."""
    step("Neutron: the two specifications, with Nova's part played by hand")
    nova = openstack_neutron.scenarios(lab, check)
    step("Neutron: trunks, uplinks, live migration, limits, and what fails in between")
    openstack_faults.scenarios(lab, nova, check)
    openstack_faults.clean_up(lab, nova, check)
    step("churn")
    openstack_churn.run_churn(lab, check, churn, MORE_KILLS if churn >= 100 else KILLS, seed)


def logs(lab):
    for process in [*lab.processes, *(p for host in lab.hosts.values() for p in (host.agent, host.switch))]:
        if os.path.exists(process.log):
            print(f"\n-- the end of the log of {process.name}\n{process.tail(25)}")
    print("(--logs=DIRECTORY keeps all of them)")


if __name__ == "__main__":
    sys.exit(play(*sys.argv[2:]))

"""Frames made by scapy, for scripts/interop: protocols of the field, and whom a switch has to deliver them to."""

import logging

logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.all import (  # noqa: E402 (scapy logs while it is imported)
    ARP,
    EAPOL,
    GRE,
    ICMP,
    IP,
    LLC,
    PPP,
    SNAP,
    STP,
    UDP,
    VXLAN,
    Dot1AD,
    Dot1Q,
    Dot3,
    Ether,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PPPoE,
    PPPoED,
    Raw,
)
from scapy.contrib.cdp import CDPMsgDeviceID, CDPv2_HDR  # noqa: E402
from scapy.contrib.ethercat import EtherCat, EtherCatBRD  # noqa: E402
from scapy.contrib.isis import ISIS_CommonHdr, ISIS_L1_LAN_Hello  # noqa: E402
from scapy.contrib.lacp import LACP, SlowProtocol  # noqa: E402
from scapy.contrib.lldp import LLDPDUChassisID, LLDPDUEndOfLLDPDU, LLDPDUPortID, LLDPDUTimeToLive  # noqa: E402
from scapy.contrib.macsec import MACsec  # noqa: E402
from scapy.contrib.mpls import MPLS  # noqa: E402
from scapy.contrib.pnio import ProfinetIO  # noqa: E402
from scapy.contrib.pnio_dcp import ProfinetDCP  # noqa: E402

BROADCAST = "ff:ff:ff:ff:ff:ff"
EXPERIMENT = 0x88B5  # ethertype for local experiments, which no stack answers (IEEE 802)
TEXT = Raw(b"payload of a frame made by scapy, 46 bytes up")
PDELAY = Raw(bytes.fromhex("1202003600000000") + bytes(46))  # IEEE 1588


def experiment(sender, to, payload):
    return bytes(Ether(src=sender, dst=to, type=EXPERIMENT) / Raw(payload))


def matrix(a, b):
    """Frames from A, on a network with an MTU of 9000. A row: name, frame, and who receives it, "B" (C is a bystander) or
    "B and C"; for nobody, the reason of the drop."""

    def to(group, *layers, **keys):
        return stacked(Ether(src=a, dst=group, **keys), *layers)

    def llc(group, sap, *layers):
        return stacked(Dot3(src=a, dst=group) / LLC(dsap=sap, ssap=sap, ctrl=3), *layers)

    def cisco(code, *layers):
        return llc("01:00:0c:cc:cc:cc", 0xAA, SNAP(OUI=0x00000C, code=code), *layers)

    def stacked(frame, *layers):
        for layer in layers:
            frame /= layer
        return frame

    ip = IP(src="192.0.2.1", dst="198.51.100.1")
    ipv6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
    inner = Ether(src=b, dst=a)
    chassis = LLDPDUChassisID(subtype=4, id=a) / LLDPDUPortID(subtype=5, id="eth0")
    hello = ISIS_CommonHdr() / ISIS_L1_LAN_Hello(pdulength=27)
    bpdu = STP(rootmac=a, bridgemac=a)
    only = [
        ("PPPoE session", to(b, PPPoE(sessionid=7), PPP(), ip, ICMP(), TEXT)),
        ("MPLS", to(b, MPLS(label=16, s=0), MPLS(label=17, s=1), ip, UDP(), TEXT)),
        ("PROFINET", to(b, ProfinetIO(frameID=0x8000), TEXT)),
        ("ethertype 4008", to(b, TEXT, type=0x4008)),
        ("FCoE", to(b, TEXT, type=0x8906)),
        ("MACsec", to(b, MACsec(SCI=0x0102030405060001, PN=1, E=1, C=1), TEXT)),
        ("loopback test", to(b, TEXT, type=0x9000)),
        ("L2TP over IPv4", to(b, IP(src="192.0.2.1", dst="198.51.100.1", proto=115), TEXT)),
        ("IPv4 with a wrong header", to(b, IP(version=9, ihl=1, len=3, chksum=0xBAD, src="0.0.0.0"), TEXT)),
        ("VLAN", to(b, Dot1Q(vlan=120, prio=5), ip, UDP(), TEXT)),
        ("QinQ", to(b, Dot1AD(vlan=7), Dot1Q(vlan=120), ip, UDP(), TEXT)),
        ("VXLAN", to(b, ip, UDP(dport=4789), VXLAN(vni=9), inner, ip, TEXT)),
        ("GRE", to(b, ip, GRE(), inner, TEXT)),
        ("IPv6 with extension headers", to(b, ipv6, IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(m=1), TEXT)),
        ("8986 bytes", to(b, Raw(bytes(i * 31 & 255 for i in range(8972))), type=EXPERIMENT)),
        ("header only", to(b, type=EXPERIMENT)),
    ]
    everybody = [
        ("PADI", to(BROADCAST, PPPoED(code=9), TEXT)),
        ("MPLS multicast", to("01:00:5e:80:00:01", MPLS(label=18, s=1), TEXT, type=0x8848)),
        ("PTP", to("01:1b:19:00:00:00", PDELAY, type=0x88F7)),
        ("GOOSE", to("01:0c:cd:01:00:01", TEXT, type=0x88B8)),
        ("sampled values", to("01:0c:cd:04:00:01", TEXT, type=0x88BA)),
        ("PROFINET DCP", to("01:0e:cf:00:00:00", ProfinetIO(frameID=0xFEFE), ProfinetDCP(), TEXT)),
        ("EtherCAT", to(BROADCAST, EtherCat(), EtherCatBRD(adp=0, ado=0x130), TEXT, type=0x88A4)),
        ("FIP", to("01:10:18:01:00:01", TEXT, type=0x8914)),
        ("RARP", to(BROADCAST, ARP(op=3, hwsrc=a, hwdst=a, psrc="0.0.0.0"), type=0x8035)),
        ("ARP probe", to(BROADCAST, ARP(hwsrc=a, psrc="0.0.0.0", pdst="192.0.2.7"))),
        ("CFM", to("01:80:c2:00:00:30", TEXT, type=0x8902)),
        ("DOCSIS", llc("01:e0:2f:00:00:01", 0, TEXT)),
        ("IS-IS", llc("01:80:c2:00:00:14", 0xFE, hello)),
        ("CDP", cisco(0x2000, CDPv2_HDR(msg=[CDPMsgDeviceID(val=b"guest")]))),
        ("VTP", cisco(0x2003, TEXT)),
        ("STP", llc("01:80:c2:00:00:00", 0x42, bpdu)),
        ("unknown unicast", to("02:00:00:00:77:77", TEXT, type=EXPERIMENT)),
        ("PTP peer delay", to("01:80:c2:00:00:0e", PDELAY, type=0x88F7)),
        ("LLDP", to("01:80:c2:00:00:0e", chassis, LLDPDUTimeToLive(ttl=120), LLDPDUEndOfLLDPDU())),
        ("LACP", to("01:80:c2:00:00:02", SlowProtocol(), LACP(actor_system=a))),
        ("EAPOL", to("01:80:c2:00:00:03", EAPOL(version=2, type=1))),
    ]
    nobody = [
        ("PAUSE", to("01:80:c2:00:00:01", Raw(bytes([0, 1, 255, 255]) + bytes(42)), type=0x8808), "reserved_group"),
        ("group source", Ether(src="03:00:00:00:00:01", dst=b, type=EXPERIMENT) / TEXT, "bad_source"),
        ("zero source", Ether(src="00:00:00:00:00:00", dst=b, type=EXPERIMENT) / TEXT, "bad_source"),
        ("to itself", to(a, TEXT, type=EXPERIMENT), "hairpin"),
    ]
    rows = [(*row, "B") for row in only] + [(*row, "B and C") for row in everybody] + nobody
    return [(name, bytes(frame), who) for name, frame, who in rows]

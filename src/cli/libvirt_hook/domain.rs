//! A domain as libvirt describes it: its name, UUID and interfaces, and the ports in its metadata.
//!
//! The XML comes from whoever may define domains. It is bounded in size and nodes, and has no document type: entities cannot
//! expand.

use roxmltree::{Document, Node, ParsingOptions};

use super::port::Declared;
use crate::wire::Mac;

/// XML namespace of the metadata.
pub const NAMESPACE: &str = "urn:vifswitch:libvirt";

/// Maximum bytes of a domain's XML.
pub const MAX_LEN: usize = 4 << 20;

/// Maximum nodes of a domain's XML.
const MAX_NODES: u32 = 200_000;

/// Maximum ports of a domain. A PC has room for 28 NICs; the rest are subports.
const MAX_PORTS: usize = 1024;

/// An interface of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its MAC address.
    pub mac: Mac,
    /// Name of its netdev on the host; `None` until libvirt has made it.
    pub dev: Option<String>,
}

/// A domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID: hexadecimal digits and dashes.
    pub uuid: String,
    /// Its interfaces, in the order in which the guest has them.
    pub interfaces: Vec<Interface>,
    /// Ports in its metadata.
    pub ports: Vec<Declared>,
}

impl Domain {
    /// Reads the XML of a domain, or of libvirtd's file about a running one.
    pub fn parse(xml: &str) -> Result<Domain, String> {
        if xml.len() > MAX_LEN {
            return Err(format!("the domain's XML is longer than {MAX_LEN} bytes; remove some of its metadata"));
        }
        let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
        let document =
            Document::parse_with_options(xml, options).map_err(|e| format!("not the XML of a domain: {e}"))?;
        let root = document.root_element();
        // /run/libvirt/qemu/NAME.xml has the domain in <domstatus>
        let domain = if root.has_tag_name("domain") { Some(root) } else { child(root, "domain") };
        let domain = domain.ok_or("not the XML of a domain: it has no <domain>")?;
        let text = |name: &str| child(domain, name).and_then(|node| node.text()).map(|text| text.trim().to_owned());
        let name = text("name").ok_or("not the XML of a domain: it has no <name>")?;
        let uuid = text("uuid").filter(|uuid| is_uuid(uuid));
        let uuid = uuid.ok_or("not the XML of a domain: it has no valid <uuid>")?;
        let interfaces = child(domain, "devices").map(interfaces).unwrap_or_default();
        Ok(Domain { interfaces, ports: ports(domain)?, name, uuid })
    }

    /// The interface with this MAC address, and its place among the interfaces.
    pub fn interface(&self, mac: Mac) -> Result<(usize, &Interface), String> {
        let mut found = self.interfaces.iter().enumerate().filter(|(_, interface)| interface.mac == mac);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => {
                Err(format!("two interfaces of the domain have the MAC address {mac}; give each its own"))
            }
            (None, _) => {
                let macs: Vec<String> = self.interfaces.iter().map(|interface| interface.mac.to_string()).collect();
                let others = if macs.is_empty() { "it has none".into() } else { format!("it has {}", macs.join(", ")) };
                Err(format!("no interface of the domain has the MAC address {mac}; {others}"))
            }
        }
    }
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn is_uuid(text: &str) -> bool {
    (1..=36).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Interfaces that have a MAC address: a passed-through PCI device may have none.
fn interfaces(devices: Node<'_, '_>) -> Vec<Interface> {
    let interface = |node: Node<'_, '_>| {
        let mac = child(node, "mac")?.attribute("address")?.parse().ok()?;
        let dev = child(node, "target").and_then(|target| target.attribute("dev")).map(str::to_owned);
        Some(Interface { mac, dev })
    };
    devices.children().filter(|node| node.has_tag_name("interface")).filter_map(interface).collect()
}

/// Ports in the metadata. Their elements may be without namespace: `virsh metadata --set` gives one to the outermost only.
fn ports(domain: Node<'_, '_>) -> Result<Vec<Declared>, String> {
    let Some(metadata) = child(domain, "metadata") else { return Ok(Vec::new()) };
    let mut ports: Vec<Declared> = Vec::new();
    for list in metadata.children().filter(|node| node.has_tag_name((NAMESPACE, "ports"))) {
        for node in list.children().filter(Node::is_element) {
            let namespace = node.tag_name().namespace().unwrap_or(NAMESPACE);
            if (namespace, node.tag_name().name()) != (NAMESPACE, "port") {
                return Err(format!(
                    "metadata: unknown element <{}> in <ports>; it has <port>",
                    node.tag_name().name()
                ));
            }
            let attributes = node.attributes().filter(|attribute| attribute.namespace().is_none());
            let port = Declared::read(attributes.map(|attribute| (attribute.name(), attribute.value())))?;
            if ports.iter().any(|other| other.id == port.id) {
                return Err(format!("metadata: port {:?} is there twice; list each port once", port.id));
            }
            if ports.len() == MAX_PORTS {
                return Err(format!("metadata: more than {MAX_PORTS} ports; use fewer"));
            }
            ports.push(port);
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As `virsh dumpxml` of libvirt 9.0 prints a running domain.
    const RUNNING: &str = include_str!("../../../tests/golden/libvirt/running.xml");
    /// As libvirt 9.0 gives it to the hook in `prepare`: its taps are not made.
    const PREPARED: &str = include_str!("../../../tests/golden/libvirt/prepare.xml");
    /// libvirtd's file about a running domain.
    const STATUS: &str = include_str!("../../../tests/golden/libvirt/status.xml");

    fn mac(text: &str) -> Mac {
        text.parse().unwrap()
    }

    #[test]
    fn a_domain_of_libvirt_is_read() {
        let domain = Domain::parse(RUNNING).unwrap();
        assert_eq!((domain.name.as_str(), domain.uuid.as_str()), ("vm1", "6b0dd2f0-6f5c-4a41-9a0c-3c9c0f1e0001"));
        let interfaces: Vec<_> = domain.interfaces.iter().map(|of| (of.mac.to_string(), of.dev.as_deref())).collect();
        assert_eq!(
            interfaces,
            [
                ("52:54:00:00:01:0a".to_owned(), Some("vnet0")),
                ("52:54:00:00:02:0a".to_owned(), Some("vnet1")),
                ("52:54:00:00:01:0b".to_owned(), Some("vnet2")),
            ]
        );
        let ports: Vec<_> = domain.ports.iter().map(|port| port.id.as_str()).collect();
        assert_eq!(ports, ["vm1-a", "vm1-b", "vm1-c"]);
        assert_eq!(Domain::parse(STATUS).unwrap().ports.len(), 3);
        let prepared = Domain::parse(PREPARED).unwrap();
        assert_eq!((prepared.ports, prepared.uuid), (domain.ports, domain.uuid));
        assert!(prepared.interfaces.iter().all(|of| of.dev.is_none()));
    }

    /// A domain with this in `<metadata>` and `<devices>`.
    fn domain(metadata: &str, devices: &str) -> String {
        format!(
            "<domain type='qemu'><name>d</name><uuid>6b0dd2f0</uuid><metadata>{metadata}</metadata>\
             <devices>{devices}</devices></domain>"
        )
    }

    #[test]
    fn ports_are_those_of_the_namespace() {
        let port = "id='p1' mac='52:54:00:00:00:01' network='n'";
        for (metadata, count) in [
            (String::new(), 0),
            (format!("<vs:ports xmlns:vs='{NAMESPACE}'><vs:port {port}/></vs:ports>"), 1),
            (format!("<x:ports xmlns:x='{NAMESPACE}'>\n <port {port}/>\n</x:ports>"), 1),
            (format!("<ports xmlns='{NAMESPACE}'><port {port}/></ports>"), 1),
            (format!("<ports><port {port}/></ports>"), 0),
            (format!("<vs:ports xmlns:vs='urn:other'><vs:port {port}/></vs:ports>"), 0),
        ] {
            let parsed = Domain::parse(&domain(&metadata, "")).map(|domain| domain.ports.len());
            assert_eq!(parsed, Ok(count), "{metadata}");
        }
    }

    #[test]
    fn what_is_wrong_in_the_metadata_is_named() {
        let ports = |inside: &str| domain(&format!("<vs:ports xmlns:vs='{NAMESPACE}'>{inside}</vs:ports>"), "");
        let port = "<vs:port id='p1' mac='52:54:00:00:00:01' network='n'/>";
        for (xml, said) in [
            (ports("<vs:prt/>"), "<prt>"),
            (ports("<o:port xmlns:o='urn:other'/>"), "<port>"),
            (ports(&format!("{port}{port}")), "\"p1\" is there twice"),
            (ports("<vs:port/>"), "id"),
            ("<domain><uuid>6b0dd2f0</uuid></domain>".into(), "<name>"),
            ("<domain><name>d</name></domain>".into(), "<uuid>"),
            ("<domain><name>d</name><uuid>../../x</uuid></domain>".into(), "<uuid>"),
            ("<network/>".into(), "<domain>"),
            ("nothing".into(), "not the XML of a domain"),
            (format!("<!DOCTYPE d [<!ENTITY a 'b'>]>{}", domain("", "")), "not the XML of a domain"),
        ] {
            let error = Domain::parse(&xml).unwrap_err();
            assert!(error.contains(said), "{xml}: {error}");
        }
    }

    #[test]
    fn size_and_nodes_are_bounded() {
        assert!(Domain::parse(&" ".repeat(MAX_LEN + 1)).unwrap_err().contains("longer than"));
        let many = domain(&"<a/>".repeat(MAX_NODES as usize), "");
        assert!(many.len() < MAX_LEN && Domain::parse(&many).is_err());
        let ports: String =
            (0..=MAX_PORTS).map(|n| format!("<port id='p{n}' mac='52:54:00:00:00:01' network='n'/>")).collect();
        let many = domain(&format!("<vs:ports xmlns:vs='{NAMESPACE}'>{ports}</vs:ports>"), "");
        assert!(Domain::parse(&many).unwrap_err().contains("more than"));
        let deep = format!("{}{}", "<a>".repeat(90_000), "</a>".repeat(90_000));
        assert!(Domain::parse(&domain(&deep, "")).is_ok());
    }

    #[test]
    fn an_interface_is_found_by_its_mac_address() {
        let nic = |mac: &str| format!("<interface type='ethernet'><mac address='{mac}'/></interface>");
        let two = [nic("52:54:00:00:00:01"), nic("52:54:00:00:00:02"), nic("52:54:00:00:00:02")].concat();
        let of = Domain::parse(&domain("", &two)).unwrap();
        assert_eq!(of.interface(mac("52:54:00:00:00:01")).unwrap().0, 0);
        assert!(of.interface(mac("52:54:00:00:00:02")).unwrap_err().contains("two interfaces"));
        let none = of.interface(mac("52:54:00:00:00:03")).unwrap_err();
        assert!(none.contains("52:54:00:00:00:03") && none.contains("it has 52:54:00:00:00:01, "), "{none}");
        let none = Domain::parse(&domain("", "<interface/>")).unwrap().interface(mac("52:54:00:00:00:03")).unwrap_err();
        assert!(none.contains("it has none"), "{none}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Domain::parse(&text);
        }

        #[test]
        fn a_damaged_domain_is_read_or_refused(at in 0..RUNNING.len(), length in 0..200usize, with in "[<>&'\"/a-z:= ]{0,9}") {
            let begin = RUNNING.floor_char_boundary_at(at);
            let end = RUNNING.floor_char_boundary_at((at + length).min(RUNNING.len()));
            let damaged = format!("{}{with}{}", &RUNNING[..begin], &RUNNING[end.max(begin)..]);
            if let Ok(domain) = Domain::parse(&damaged) {
                for port in &domain.ports {
                    prop_assert!(!port.id.is_empty());
                    let _ = domain.interface(port.mac);
                }
            }
        }
    }

    trait Boundary {
        fn floor_char_boundary_at(&self, at: usize) -> usize;
    }

    impl Boundary for str {
        fn floor_char_boundary_at(&self, at: usize) -> usize {
            (0..=at).rev().find(|&at| self.is_char_boundary(at)).unwrap_or(0)
        }
    }
}

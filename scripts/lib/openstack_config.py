"""Configuration of the services of scripts/openstack-lab."""

RUN = "/run/openstack-lab"
BROKER = "10.255.0.1"  # address of the lab, for hosts in namespaces of their own

MYSQL = f"""[mysqld]
user = root
datadir = {RUN}/mysql
socket = {RUN}/mysql.sock
pid-file = {RUN}/mysql.pid
bind-address = 127.0.0.1
port = 3306
skip-grant-tables
skip-name-resolve
skip-log-bin
innodb_flush_log_at_trx_commit = 0
innodb_doublewrite = 0
innodb_buffer_pool_size = 64M
innodb_log_file_size = 32M
performance_schema = off
max_connections = 300
"""

NEUTRON_CONF = f"""[DEFAULT]
auth_strategy = noauth
core_plugin = ml2
service_plugins = segments,trunk,qos
transport_url = rabbit://guest:guest@{BROKER}:5672/
api_paste_config = {RUN}/etc/neutron-paste.ini
state_path = {RUN}/neutron
rpc_workers = 1
rpc_state_report_workers = 0
rpc_response_timeout = 15
notify_nova_on_port_status_changes = {{notify}}
notify_nova_on_port_data_changes = {{notify}}
dhcp_agent_notification = False
agent_down_time = 9
[oslo_concurrency]
lock_path = {RUN}/lock
[oslo_messaging_rabbit]
rabbit_interval_max = 1
kombu_reconnect_delay = 0.2
heartbeat_timeout_threshold = 6
[database]
connection = mysql+pymysql://root@127.0.0.1:3306/neutron
[ml2]
mechanism_drivers = vifswitch
type_drivers = local,flat,vlan
tenant_network_types = vlan
extension_drivers = port_security,qos
[ml2_type_vlan]
network_vlan_ranges = physnet1:100:199
[ml2_type_flat]
flat_networks = physnet2
[quotas]
quota_driver = neutron.db.quota.driver_nolock.DbQuotaNoLockDriver
[AGENT]
report_interval = 3
[vifswitch]
qos_limits = flooded
[nova]
auth_type = none
endpoint = http://127.0.0.1:8774/v2.1
endpoint_override = http://127.0.0.1:8774/v2.1
[placement]
auth_type = none
endpoint = http://127.0.0.1:8778
endpoint_override = http://127.0.0.1:8778
[oslo_policy]
policy_file = {RUN}/etc/neutron-policy.yaml
"""

AGENT_CONF = """[DEFAULT]
host = {host}
[vifswitch]
socket = {socket}
uplink_mappings = physnet1:up0,physnet2:flat0
uplink_devices = flat0:{flat}
resync_interval = 30
"""

SWITCH_CONF = """[switch]
api = "{socket}"
state = "{directory}/state.db"
frames = 16384

[[networks]]
id = "operators"
mtu = 9000

[[vms]]
id = "operators-vm"

  [[vms.ports]]
  port_id = "operators-port"
  network_id = "operators"
  mac_address = "02:00:00:00:00:0{number}"
  device = {{ kind = "tap", name = "operators0", persist = false }}

[[uplinks]]
id = "up0"
device = {{ kind = "packet", name = "{wire}" }}
networks = [{{ network_id = "operators" }}]
"""

POLICY = """"service_api": "role:admin or role:service"
"create_port:binding:profile": "role:admin or role:service"
"update_port:binding:profile": "role:admin or role:service"
"""

//! The golden list: the files that hold an identity, each with what it is. Help, docs/golden.md and `--golden` go by it.
//!
//! It names what a machine makes for itself and what must not be the same twice: not configuration (network passwords, wpa and iwd
//! profiles, authorized keys), which is what a golden image is for.

/// Files that hold an identity.
pub struct IdentityFiles {
    /// Which ones (a name may hold `*`; with `/` at its end every file below).
    pub path: &'static str,
    /// What they are.
    pub what: &'static str,
}

const fn item(path: &'static str, what: &'static str) -> IdentityFiles {
    IdentityFiles { path, what }
}

/// Emptied by `--golden`, shown by `show --identity`.
pub const LIST: &[IdentityFiles] = &[
    item(
        "/etc/machine-id",
        "the machine's id; systemd makes one where it is empty",
    ),
    item(
        "/var/lib/dbus/machine-id",
        "the same for D-Bus without systemd",
    ),
    item(
        "/etc/ssh/ssh_host_*",
        "OpenSSH's host keys and their certificates",
    ),
    item("/etc/dropbear/dropbear_*", "dropbear's host keys"),
    item(
        "/var/lib/dropbear/dropbear_*",
        "the same where /etc is read-only",
    ),
    item(
        "/var/lib/systemd/random-seed",
        "random seeds, credited as entropy: two equal ones make equal keys",
    ),
    item("/var/lib/urandom/random-seed", "the same, of sysvinit"),
    item("/var/lib/random-seed", "the same, of busybox and Buildroot"),
    item("/var/lib/misc/random-seed", "the same, of OpenRC"),
    item("/etc/random-seed", "the same, of older systems"),
    item("/etc/urandom.seed", "the same, of OpenWrt"),
    item("/var/lib/seedrng/", "the same, of seedrng"),
    item("/var/lib/dhcp/", "DHCP leases and the DUID of dhclient"),
    item("/var/lib/dhclient/", "the same elsewhere"),
    item("/var/lib/dhcpcd/", "leases, DUID and secret of dhcpcd"),
    item("/etc/dhcpcd.duid", "the same, of older ones"),
    item("/etc/dhcpcd.secret", "the same, of older ones"),
    item(
        "/var/lib/NetworkManager/secret_key",
        "what NetworkManager makes stable addresses and ids of",
    ),
    item(
        "/var/lib/NetworkManager/seen-bssids",
        "networks it has seen",
    ),
    item("/var/lib/NetworkManager/timestamps", "and when"),
    item("/var/lib/NetworkManager/*.lease", "its leases"),
    item(
        "/etc/udev/rules.d/70-persistent-net.rules",
        "names for this machine's network cards",
    ),
    item("/var/lib/mender/mender-agent.pem", "Mender's key"),
    item(
        "/var/lib/mender/mender-store",
        "and the token it got for it",
    ),
    item(
        "/data/mender/mender-agent.pem",
        "the same on a data partition",
    ),
    item("/data/mender/mender-store", "and the token"),
    item(
        "/var/lib/cloud/data/",
        "the instance that cloud-init saw last",
    ),
    item("/var/lib/cloud/instances/", "and what it was given"),
    item("/root/.*_history", "what was typed: shells, interpreters"),
    item("/home/*/.*_history", "the same"),
];

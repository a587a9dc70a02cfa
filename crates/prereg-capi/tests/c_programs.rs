//! C programs with the shared and the static library, which check the behaviour that the header states.

use std::path::Path;

use installed::{Installed, package};

mod installed;

#[test]
fn the_core_does_what_the_header_says() {
    let Some(installed) = Installed::new() else { return };
    assert_eq!(installed.c("tests/c/core.c").unwrap(), "core: all as expected\n");
}

#[test]
fn tables_guests_containers_and_iova_maps_do_what_the_header_says() {
    let Some(installed) = Installed::new() else { return };
    if !Path::new("/usr/include/linux/vfio.h").exists() {
        return eprintln!("skipped: no linux/vfio.h on this machine");
    }
    assert_eq!(installed.c("tests/c/containers.c").unwrap(), "containers: all as expected\n");
}

#[test]
fn threads_map_while_another_registers_and_unregisters() {
    let Some(installed) = Installed::new() else { return };
    assert!(installed.c("tests/c/threads.c").unwrap().starts_with("threads: 2000 registrations"));
}

#[test]
fn the_example_that_pins_once_shows_ebusy() {
    let Some(installed) = Installed::new() else { return };
    let Some(said) = installed.c("examples/c/pin_once.c") else { return };
    assert!(said.contains("1000000 maps and unmaps"), "{said}");
    assert!(said.contains("unregister: -16, 2 mappings"), "{said}");
    assert!(said.contains("anything left: 0"), "{said}");
}

#[test]
fn the_example_with_pins_of_its_own_leaves_nothing() {
    let Some(installed) = Installed::new() else { return };
    let said = installed.c("examples/c/own_pins.c").unwrap();
    assert!(said.contains("page 9 was written by the device"), "{said}");
    assert!(said.ends_with("pinned 0, charged 0, contexts released 2\n"), "{said}");
}

#[test]
fn the_program_on_the_page_about_c_runs() {
    let Some(installed) = Installed::new() else { return };
    let page = std::fs::read_to_string(package().join("../../docs/c.md")).unwrap();
    let (_, rest) = page.split_once("```c\n").unwrap();
    let source = installed.root().join("page.c");
    std::fs::write(&source, rest.split_once("```").unwrap().0).unwrap();
    let Some(said) = installed.c(source.to_str().unwrap()) else { return };
    assert!(said.starts_with("the device finds it at 0x"), "{said}");
}

#[test]
fn structs_of_other_sizes_and_reserved_members_are_treated_as_the_header_says() {
    let Some(installed) = Installed::new() else { return };
    assert_eq!(installed.c("tests/c/sizes.c").unwrap(), "sizes: all as expected\n");
}

#[test]
fn pages_that_devices_may_have_written_are_told_to_unpin() {
    let Some(installed) = Installed::new() else { return };
    assert_eq!(installed.c("tests/c/dirty.c").unwrap(), "dirty: all as expected\n");
}

#[test]
fn what_was_copied_freed_or_never_made_is_refused() {
    let Some(installed) = Installed::new() else { return };
    assert_eq!(installed.c("tests/c/hostile.c").unwrap(), "hostile: all as expected\n");
}

#[test]
fn the_back_ends_of_the_kernel_say_what_is_missing() {
    let Some(installed) = Installed::new() else { return };
    assert_eq!(installed.c("tests/c/kernel.c").unwrap(), "kernel: all as expected\n");
}

#[test]
fn devices_reach_what_is_registered_through_the_kernels_vfio() {
    let Some(installed) = Installed::new() else { return };
    if !Path::new("/usr/include/linux/vfio.h").exists() {
        return eprintln!("skipped: no linux/vfio.h on this machine");
    }
    // Without devices it is compiled and ends as skipped.
    if let Some(said) = installed.c("tests/c/vfio_device.c") {
        assert_eq!(said, "vfio_device: all as expected\n");
    }
}

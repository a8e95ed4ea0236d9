//! The machine itself: its programs do what they say.
#![allow(clippy::unwrap_used, clippy::panic)]
use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuExit};
use outboard_ring3::{DATA, DEVICES, Machine, Program};

#[test]
fn writes_reach_memory_and_ports_and_the_loop_ends() {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("SKIP: no usable /dev/kvm: {error}");
            return;
        }
    };
    let machine = Machine::new(&kvm).unwrap();
    for (id, program, place) in [
        (0, Program::memory_writes(), DEVICES + 0x1000),
        (1, Program::port_writes(), 0xc000),
    ] {
        let registers = kvm_regs {
            rdi: place,
            rsi: DATA,
            rbx: 0x1122_3344,
            rcx: 3,
            ..Default::default()
        };
        let mut vcpu = machine.vcpu(id).unwrap();
        vcpu.begin(&program, registers).unwrap();
        let mut seen = Vec::new();
        loop {
            match vcpu.run().unwrap() {
                VcpuExit::MmioWrite(address, data) => seen.push((address, data.to_vec())),
                VcpuExit::IoOut(0x10, _) => break,
                VcpuExit::IoOut(port, data) => seen.push((port.into(), data.to_vec())),
                other => panic!("{other:?}"),
            }
        }
        let write = (place, vec![0x44, 0x33, 0x22, 0x11]);
        assert_eq!(seen, vec![write; 3]);
        for index in 0..3 {
            let ticks = machine.word(DATA + 8 * index).unwrap();
            assert!((1..1 << 40).contains(&ticks), "{ticks}");
        }
    }
}

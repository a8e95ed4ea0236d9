use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, raise};
use vm_memory::{Bytes, VolatileMemory};

use super::*;

const BASE: u64 = 0x10_0000;

fn memfd(pages: u64) -> File {
    let file = File::from(memfd_create(c"lent", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(pages * PAGE).unwrap();
    file
}

fn alarm() -> Arc<Alarm> {
    Arc::new(Alarm::new().unwrap())
}

fn guarded(file: &File, pages: u64, alarm: &Arc<Alarm>) -> MmapRegion<Guard> {
    map(file, 0, pages * PAGE, Place::Guest(BASE), alarm).unwrap()
}

fn read(region: &MmapRegion<Guard>, offset: u64) -> u64 {
    let slice = region.as_volatile_slice();
    slice.read_obj(offset as usize).unwrap()
}

fn write(region: &MmapRegion<Guard>, offset: u64, value: u64) {
    let slice = region.as_volatile_slice();
    slice.write_obj(value, offset as usize).unwrap();
}

fn is_readable(alarm: &Alarm) -> bool {
    let mut fds = [PollFd::new(alarm.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn a_page_that_is_cut_off_is_replaced_and_the_others_stay() {
    let (file, alarm) = (memfd(4), alarm());
    let region = guarded(&file, 4, &alarm);
    (0..4).for_each(|page| write(&region, page * PAGE, page + 1));
    assert_eq!(alarm.lost(), None);
    file.set_len(2 * PAGE).unwrap();
    assert!(!is_readable(&alarm), "nobody has touched it");
    assert_eq!(read(&region, 3 * PAGE + 8), 0);
    assert_eq!(alarm.lost(), Some(Lost::Guest(BASE + 3 * PAGE)));
    assert!(is_readable(&alarm));
    // It goes on, on both sides of the cut; the first loss is the one told.
    write(&region, 2 * PAGE, 7);
    assert_eq!(read(&region, 2 * PAGE), 7);
    assert_eq!((read(&region, 0), read(&region, PAGE)), (1, 2));
    assert_eq!(alarm.lost(), Some(Lost::Guest(BASE + 3 * PAGE)));
    alarm.silence();
    assert!(!is_readable(&alarm));
    alarm.reset();
    assert_eq!(alarm.lost(), None);
}

#[test]
fn every_mapping_has_its_own_alarm_and_a_place_on_the_list_is_used_again() {
    let file = memfd(2);
    // More than fit in a block, and again once all have gone.
    for _ in 0..3 {
        let alarms: Vec<_> = (0..200).map(|_| alarm()).collect();
        let regions = alarms.iter().map(|alarm| guarded(&file, 2, alarm));
        let regions: Vec<_> = regions.collect();
        file.set_len(PAGE).unwrap();
        for at in [199, 0, 64, 63, 128] {
            assert_eq!(read(&regions[at], PAGE), 0);
            assert_eq!(alarms[at].lost(), Some(Lost::Guest(BASE + PAGE)));
        }
        let rang = alarms.iter().filter(|alarm| alarm.lost().is_some());
        assert_eq!(rang.count(), 5);
        file.set_len(2 * PAGE).unwrap();
    }
}

#[test]
fn ranges_come_and_go_while_others_fault() {
    let file = memfd(1);
    let cut = memfd(512);
    let churn = || {
        let alarm = alarm();
        for _ in 0..2000 {
            drop(guarded(&file, 1, &alarm));
        }
        assert_eq!(alarm.lost(), None);
    };
    let fault = || {
        let alarm = alarm();
        let region = guarded(&cut, 512, &alarm);
        cut.set_len(PAGE).unwrap();
        for page in 1..512 {
            assert_eq!(read(&region, page * PAGE), 0);
        }
        assert_eq!(alarm.lost(), Some(Lost::Guest(BASE + PAGE)));
    };
    std::thread::scope(|scope| {
        scope.spawn(churn);
        scope.spawn(fault);
        scope.spawn(churn);
    });
}

#[test]
fn huge_pages_that_are_not_there_are_replaced_whole() {
    const HUGE: u64 = 2 << 20;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let file = File::from(memfd_create(c"huge", flags).unwrap());
    // More than any machine has: nothing is reserved for a mapping of ours.
    let pages = 1 << 20;
    file.set_len(pages * HUGE).unwrap();
    assert_eq!(page_size(&file).unwrap(), HUGE);
    let alarm = alarm();
    let part = map(&file, 4096, HUGE, Place::Guest(0), &alarm).unwrap_err();
    assert!(part.contains("huge pages of 0x200000"), "{part}");
    let region = map(&file, 0, pages * HUGE, Place::Guest(BASE), &alarm).unwrap();
    // However many there are, a machine that has them all reserved has none.
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free: u64 = free.unwrap().trim().parse().unwrap();
    assert!(free < 1024, "this test takes every huge page there is");
    for page in 0..=free {
        write(&region, page * HUGE + 0x1238, page);
    }
    let Some(Lost::Guest(lost)) = alarm.lost() else {
        panic!("{free} huge pages and one more");
    };
    assert_eq!(lost % HUGE, BASE % HUGE);
    assert_eq!(read(&region, free * HUGE + 0x1238), free);
}

#[test]
fn the_sentence_names_what_is_lost_and_why_it_may_be() {
    let said = Lost::Guest(0x12000).to_string();
    for part in ["memory at 0x12000", "cut", "huge pages", "tmpfs"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(Lost::Inflight.to_string().contains("the inflight region"));
}

#[test]
fn what_cannot_be_mapped_is_refused_with_why() {
    let (file, alarm) = (memfd(2), alarm());
    let map = |file: &File, offset, size| map(file, offset, size, Place::Inflight, &alarm);
    let told = |file: &File, offset, size| map(file, offset, size).unwrap_err();
    assert!(told(&file, PAGE, 2 * PAGE).contains("only 0x2000 bytes"));
    assert!(told(&file, u64::MAX - 1, 2).contains("only 0x2000 bytes"));
    assert!(told(&file, 0, 0).contains("empty"));
    assert!(told(&file, 1, 8).contains("cannot map its file"));
    let null = File::open("/dev/zero").unwrap();
    assert!(told(&null, 0, PAGE).contains("not of a regular file"));
}

#[test]
fn what_another_has_mapped_can_be_watched() {
    let (file, alarm) = (memfd(2), alarm());
    let offset = vm_memory::FileOffset::new(file.try_clone().unwrap(), 0);
    let theirs = Arc::new(MmapRegion::<()>::from_file(offset, 2 * PAGE as usize).unwrap());
    let watch = Watch::new(theirs.clone(), Place::Guest(BASE), &alarm).unwrap();
    file.set_len(0).unwrap();
    let slice = theirs.as_volatile_slice();
    assert_eq!(slice.read_obj::<u64>(PAGE as usize).unwrap(), 0);
    assert_eq!(alarm.lost(), Some(Lost::Guest(BASE + PAGE)));
    drop(watch);
}

const DEATH: &str = "OUTBOARD_TEST_DEATH";

#[test]
fn any_other_sigbus_ends_the_program_as_before() {
    if let Ok(how) = std::env::var(DEATH) {
        return die_of(&how);
    }
    for how in ["unguarded", "unmapped", "sent"] {
        let mut program = Command::new(std::env::current_exe().unwrap());
        let test = "shared::tests::any_other_sigbus_ends_the_program_as_before";
        program.args(["--exact", test]).env(DEATH, how);
        let output = program.output().unwrap();
        let signal = output.status.signal();
        assert_eq!(signal, Some(libc::SIGBUS), "{how}: {output:?}");
    }
}

/// In the program that the test has started.
fn die_of(how: &str) {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let (file, alarm) = (memfd(2), alarm());
    let guarded = guarded(&file, 2, &alarm);
    let offset = vm_memory::FileOffset::new(file.try_clone().unwrap(), 0);
    let plain = Arc::new(MmapRegion::<()>::from_file(offset, 2 * PAGE as usize).unwrap());
    file.set_len(0).unwrap();
    assert_eq!(read(&guarded, 0), 0);
    match how {
        "sent" => raise(Signal::SIGBUS).unwrap(),
        // On the list, and off it before it is touched.
        "unmapped" => drop(Watch::new(plain.clone(), Place::Guest(0), &alarm).unwrap()),
        _ => {}
    }
    let slice = plain.as_volatile_slice();
    let _ = slice.read_obj::<u64>(0);
}

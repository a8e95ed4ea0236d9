//! A minimal bzImage (Linux x86 boot protocol, version 2.12): setup sectors that hold the header and a
//! few 16-bit instructions, then the guest's memory image.

use crate::elf::Image;

/// Offset of the 64-bit entry in the image, which the protocol fixes.
pub const ENTRY64: u64 = 0x200;

/// Where entry.s keeps the 16-bit code, how much of it, and where it wants to lie in the setup sectors.
const SETUP_CODE: std::ops::Range<usize> = 0x400..0x500;
const SETUP_CODE_AT: usize = 0xd00;

const SECTOR: usize = 512;
/// The zero page is exactly the boot sector and the setup sectors.
const SETUP_SECTORS: u8 = 7;
const PAYLOAD: usize = (SETUP_SECTORS as usize + 1) * SECTOR;

const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// Where the header ends and a jump to the 16-bit code stands.
const HEADER_END: usize = 0x268;
const VERSION_AT: usize = 0xe00;
const VERSION: &[u8] = b"outboard-guest\0";
const COMMAND_LINE_SIZE: u32 = 2047;

/// Wraps the image.
pub fn pack(image: &Image) -> Result<Vec<u8>, String> {
    let code = image
        .bytes
        .get(SETUP_CODE)
        .ok_or("the image is too short for its 16-bit code")?;
    let address = u32::try_from(image.address).map_err(|_| "the image lies above 4 GiB")?;
    let init_size = u32::try_from(image.size).map_err(|_| "the image is larger than 4 GiB")?;
    let mut file = vec![0; PAYLOAD];
    file.extend_from_slice(&image.bytes);
    file.resize(file.len().next_multiple_of(16), 0);
    let paragraphs =
        u32::try_from((file.len() - PAYLOAD) / 16).map_err(|_| "the image is too large")?;
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[SETUP_SECTORS]);
    put(0x1f4, &paragraphs.to_le_bytes());
    put(0x1fa, &0xffffu16.to_le_bytes()); // vid_mode: normal
    put(0x1fe, &0xaa55u16.to_le_bytes()); // boot_flag
    put(0x200, &[0xeb, (HEADER_END - 0x202) as u8]); // the jump's distance also tells the header's end
    put(0x202, b"HdrS");
    put(0x206, &0x020cu16.to_le_bytes());
    put(0x20c, &0x1000u16.to_le_bytes()); // start_sys_seg
    put(0x20e, &((VERSION_AT - 0x200) as u16).to_le_bytes()); // kernel_version
    put(VERSION_AT, VERSION);
    put(0x211, &[LOADED_HIGH]);
    put(0x214, &address.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x1000u32.to_le_bytes()); // kernel_alignment; relocatable_kernel stays 0
    put(0x235, &[12]); // min_alignment
    put(0x236, &XLF_KERNEL_64.to_le_bytes());
    put(0x238, &COMMAND_LINE_SIZE.to_le_bytes());
    put(0x258, &image.address.to_le_bytes()); // pref_address
    put(0x260, &init_size.to_le_bytes());
    put(HEADER_END, &[0xe9]);
    put(
        HEADER_END + 1,
        &((SETUP_CODE_AT - HEADER_END - 3) as u16).to_le_bytes(),
    );
    put(SETUP_CODE_AT, code);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_what_loaders_look_for() {
        let image = Image {
            address: 0x10_0000,
            bytes: vec![5; 0x1001],
            size: 0x9000,
        };
        let file = pack(&image).unwrap();
        assert_eq!(&file[0x202..0x206], b"HdrS");
        assert_eq!(file[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(file[0x236] & 1, 1);
        assert_eq!((usize::from(file[0x1f1]) + 1) * 512, PAYLOAD);
        assert_eq!(file.len() - PAYLOAD, 0x1010);
        assert_eq!(file[PAYLOAD..PAYLOAD + 0x1001], image.bytes);
        assert_eq!(0x202 + usize::from(file[0x201]), HEADER_END);
    }

    #[test]
    fn an_image_without_16_bit_code_is_refused() {
        assert!(
            pack(&Image {
                address: 0,
                bytes: vec![0; 0x400],
                size: 0x400
            })
            .is_err()
        );
    }
}

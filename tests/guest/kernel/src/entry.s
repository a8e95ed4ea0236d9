# Everything that runs in ring 0, by hand. A software KVM emulates ring 0 one instruction at a time and knows
# only some of them, so there is no compiled code here: entry, the way to ring 3, interrupt and exception
# stubs, and a few calls that ring 3 makes by `int3` with the wanted stub's address in r10; `int 4` halts.

.set STUBS, 0x101000            # link.ld asserts both
.set TSS, 0x105000
.set TSS_SIZE, 104 + 8192 + 1   # with an I/O bitmap that allows every port

.set CODE32, 0x08
.set CODE64, 0x10
.set USER_DATA, 0x23
.set USER_CODE, 0x2b
.set BSP_TSS, 0x30

.set CR4_BITS, 0x620            # PAE, OSFXSR, OSXMMEXCPT
.set CR0_BITS, 0x80000033       # PG, NE, ET, MP, PE
.set EFER, 0xc0000080
.set EFER_LME, 0x100

.set COM1, 0x3f8

# ---------------------------------------------------------------- PVH note
.section .note.pvh, "a", @note
.p2align 2
    .long 4, 8, 18              # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

# ---------------------------------------------------------------- entry points
.section .head, "ax"
.code32
# 32-bit entry of the Linux boot protocol, at +0: ESI = boot_params.
.globl linux32_entry
linux32_entry:
    mov dx, COM1
    mov al, 0x21                # '!': the mark that start-up is measured to
    out dx, al
    mov ebx, esi
    mov ebp, 1
    jmp enter_long_mode

# PVH: EBX = start_info.
.globl pvh_entry
pvh_entry:
    mov dx, COM1
    mov al, 0x21
    out dx, al
    xor ebp, ebp

enter_long_mode:
    lgdt [gdtr]
    mov eax, CR4_BITS
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, EFER
    rdmsr
    or eax, EFER_LME
    wrmsr
    mov eax, CR0_BITS
    mov cr0, eax
    .byte 0xea                  # far jump CODE64:enter_ring3
    .long enter_ring3
    .word CODE64

# 64-bit entry of the Linux boot protocol, at +0x200: RSI = boot_params, long mode, identity mapped.
.org 0x200
.code64
.globl linux64_entry
linux64_entry:
    mov dx, COM1
    mov al, 0x21
    out dx, al
    mov rbx, rsi
    mov ebp, 1
    lgdt [gdtr]
    mov eax, CR4_BITS
    mov cr4, rax
    mov eax, offset pml4
    mov cr3, rax
    mov eax, CR0_BITS
    mov cr0, rax

enter_ring3:
    mov esp, offset bsp_ring0_stack_top
    lidt [idtr]
    mov eax, BSP_TSS
    ltr ax
    mov edi, ebp
    mov rsi, rbx
    push USER_DATA
    push offset bsp_stack_top - 8
    push 2                      # interrupts off until ring 3 asks for them
    push USER_CODE
    push offset bsp_ring3
    iretq

# ---------------------------------------------------------------- the other processors
# Copied to 0x8000 by ring 3 and entered there in real mode by a start-up IPI.
.globl trampoline_start
trampoline_start:
.code16
    cli
    xor ax, ax
    mov ds, ax
    .byte 0x66                  # lgdt with a 32-bit base
    lgdt [TRAMPOLINE_GDTR]
    mov eax, CR4_BITS
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, EFER
    mov eax, EFER_LME
    xor edx, edx
    wrmsr
    mov eax, CR0_BITS
    mov cr0, eax
    .byte 0x66, 0xea            # far jump CODE64:ap_long
    .long ap_long
    .word CODE64
.p2align 2
trampoline_gdtr:
    .word GDT_LIMIT
    .long gdt
.globl trampoline_end
.set TRAMPOLINE_GDTR, 0x8000 + (trampoline_gdtr - trampoline_start)
trampoline_end:

# ---------------------------------------------------------------- 16-bit entry of the bzImage
# The packer copies these bytes into the setup sectors at 0xd00, behind the zero page that a BIOS loader
# fills in. DS is the segment of the setup sectors. A loader that enters at 32 or 64 bits never comes here.
.set SETUP_AT, 0xd00
.org 0x400
.code16
setup_start:
    cli
    cld
    push ds
    pop es
    mov byte ptr [0x1e8], 0     # e820_entries
    mov di, 0x2d0               # e820_table
    xor ebx, ebx
1:  mov eax, 0xe820
    mov edx, 0x534d4150         # "SMAP"
    mov ecx, 20
    int 0x15
    jc 2f
    cmp eax, 0x534d4150
    jne 2f
    inc byte ptr [0x1e8]
    add di, 20
    cmp byte ptr [0x1e8], 100
    jae 2f
    test ebx, ebx
    jnz 1b
2:  cli
    xor esi, esi
    mov si, ds
    shl esi, 4                  # boot_params
    lea di, [SETUP_GDTR]
    lea eax, [esi + SETUP_GDT]
    mov [di + 2], eax
    .byte 0x66
    lgdt [di]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov ax, 0x18
    mov ds, ax
    mov es, ax
    mov ss, ax
    .byte 0x66, 0xea            # far jump 0x10:linux32_entry
    .long 0x100000
    .word 0x10
.p2align 3
setup_gdt:
    .quad 0
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
setup_gdtr:
    .word 31
    .long 0
.set SETUP_GDT, SETUP_AT + (setup_gdt - setup_start)
.set SETUP_GDTR, SETUP_AT + (setup_gdtr - setup_start)
.org 0x500

.code64
ap_long:
    mov rdi, [ap_mailbox]       # its PerCpu: see cpu/percpu.rs for the offsets
    mov rsp, [rdi + 16]
    lidt [idtr]
    mov rax, [rdi + 24]
    ltr ax
    push USER_DATA
    push [rdi + 32]
    push 2
    push USER_CODE
    push offset ap_ring3
    iretq

# ---------------------------------------------------------------- calls from ring 3
# Each is entered by the int3 gate with interrupts off.
.globl call_wrmsr
call_wrmsr:
    wrmsr
    iretq

.globl call_rdmsr
call_rdmsr:
    rdmsr
    iretq

.globl call_enable_interrupts
call_enable_interrupts:
    or qword ptr [rsp + 16], 0x200
    iretq

# Without an IDT the next exception in ring 3 is a triple fault.
.globl call_drop_idt
call_drop_idt:
    lidt [no_idt]
    iretq

# ---------------------------------------------------------------- interrupts and exceptions
interrupted_ring3:
    push rax
    push rcx
    push rdx
    mov ecx, 0x80b              # x2APIC end of interrupt
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq

exception:                      # [rsp] = vector, error code, then the frame: go on in ring 3, there
    pop [exception_vector]
    pop [exception_error]
    mov rax, cr2
    mov [exception_cr2], rax
    mov rax, [rsp]
    mov [exception_rip], rax
    mov rax, offset exception_ring3
    mov [rsp], rax
    mov qword ptr [rsp + 8], USER_CODE
    mov qword ptr [rsp + 16], 2
    mov rax, offset exception_stack_top - 8
    mov [rsp + 24], rax
    mov qword ptr [rsp + 32], USER_DATA
    iretq

# An instruction in ring 0 may cost a microsecond: as few as can be.
.section .stubs, "ax"
.set STUB, 64
.set HALT, 4                    # no other use of it in 64-bit mode
.set vector, 0
.rept 256
    .balign STUB
    .if vector == 3
        jmp r10
    .elseif vector == HALT
        # Sleeps if the word at RDI still is RSI: a wake-up between the look and the halt is not lost. ECX, EAX and EDX
        # are those of an x2APIC end of interrupt.
        cmp [rdi], rsi
        jne 1f
        sti
        hlt
1:      iretq
    .elseif vector >= 32
        lock inc qword ptr [interrupt_counts + vector * 8]
        inc qword ptr gs:[0]            # PerCpu: events
        test byte ptr [rsp + 8], 3
        jnz interrupted_ring3
        wrmsr                           # the halt, the only other place, has the registers ready
        mov rsp, [rsp + 24]             # and returns to ring 3
        iretq
    .else
        # 8, 10 to 14, 17, 21, 29 and 30 bring an error code
        .if ((0x60227d00 >> vector) & 1) == 0
            push 0
        .endif
        push vector
        jmp exception
    .endif
    .set vector, vector + 1
.endr
    .balign STUB

# ---------------------------------------------------------------- tables, complete at link time
.section .tss, "aw"
    .long 0
    .quad bsp_ring0_stack_top   # RSP0
    .fill 90, 1, 0
    .word 104                   # I/O bitmap
    .fill 8192, 1, 0
    .byte 0xff

.section .tables, "aw"
.globl pml4
.p2align 12
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
pdpt:
    .quad pd + 7, pd + 0x1007, pd + 0x2007, pd + 0x3007
    .fill 508, 8, 0
pd:                             # 4 GiB of 2 MiB pages, for everyone
.set page, 0
.rept 2048
    .quad page * 0x200000 + 0x87
    .set page, page + 1
.endr

idt:
.set vector, 0
.rept 256
    .word (STUBS + vector * STUB) & 0xffff
    .word CODE64
    .if vector == 3 || vector == HALT
        .word 0xee00            # ring 3 may call it
    .else
        .word 0x8e00
    .endif
    .word (STUBS + vector * STUB) >> 16
    .quad 0
    .set vector, vector + 1
.endr

.globl gdt
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # CODE32
    .quad 0x00af9b000000ffff    # CODE64
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff    # USER_DATA
    .quad 0x00affb000000ffff    # USER_CODE
    .word (TSS_SIZE - 1), TSS & 0xffff
    .byte TSS >> 16, 0x89, 0, 0
    .quad 0
    .fill 2 * 31, 8, 0          # TSS of the other processors, filled in by ring 3
.set GDT_LIMIT, 8 * (6 + 2 * 32) - 1

gdtr:
    .word GDT_LIMIT
    .quad gdt
idtr:
    .word 256 * 16 - 1
    .quad idt
no_idt:
    .word 0
    .quad 0

# ---------------------------------------------------------------- first steps in ring 3
.section .text.entry, "ax"
bsp_ring3:                      # EDI = 0 for PVH, 1 for boot_params; RSI = its address
    mov r8, rdi
    mov edi, offset __bss_start
    mov ecx, offset __bss_end
    sub ecx, edi
    xor eax, eax
    rep stosb
    mov rdi, r8
    jmp guest_main

.section .bss.stacks, "aw", @nobits
.p2align 4
    .skip 4096
bsp_ring0_stack_top:
    .skip 65536
bsp_stack_top:
    .skip 16384
exception_stack_top:

.section .bss.words, "aw", @nobits
.p2align 6
.globl interrupt_counts, ap_mailbox, exception_vector, exception_error, exception_cr2, exception_rip
interrupt_counts:
    .skip 256 * 8
ap_mailbox:
    .skip 8
exception_vector:
    .skip 8
exception_error:
    .skip 8
exception_cr2:
    .skip 8
exception_rip:
    .skip 8

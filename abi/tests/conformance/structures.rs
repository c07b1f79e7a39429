//! Every structure that the crate shares with Xen's headers, with its fields; a field's C name where that differs.
//!
//! A structure is compared in size, each field in offset and size.

use crate::fact::{Fact, structures};

structures! {
    callback {
        CallbackRegister = "struct callback_register" {
            kind = "type", flags, address,
        }
        CallbackUnregister = "struct callback_unregister" {
            kind = "type",
        }
    }
    console {
        XenconsInterface = "struct xencons_interface" {
            in_ = "in", out, in_cons, in_prod, out_cons, out_prod,
        }
    }
    context {
        CpuUserRegs = "struct cpu_user_regs" {
            r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, error_code,
            entry_vector, rip, cs, saved_upcall_mask, rflags, rsp, ss, es, ds, fs, gs,
        }
        VcpuGuestContext = "struct vcpu_guest_context" {
            fpu_ctxt, flags, user_regs, trap_ctxt, ldt_base, ldt_ents, gdt_frames, gdt_ents,
            kernel_ss, kernel_sp, ctrlreg, debugreg, event_callback_eip, failsafe_callback_eip,
            syscall_callback_eip, vm_assist, fs_base, gs_base_kernel, gs_base_user,
        }
    }
    event {
        EvtchnAllocUnbound = "struct evtchn_alloc_unbound" {
            dom, remote_dom, port,
        }
        EvtchnBindInterdomain = "struct evtchn_bind_interdomain" {
            remote_dom, remote_port, local_port,
        }
        EvtchnBindVirq = "struct evtchn_bind_virq" {
            virq, vcpu, port,
        }
        EvtchnBindPirq = "struct evtchn_bind_pirq" {
            pirq, flags, port,
        }
        EvtchnBindIpi = "struct evtchn_bind_ipi" {
            vcpu, port,
        }
        EvtchnClose = "struct evtchn_close" {
            port,
        }
        EvtchnSend = "struct evtchn_send" {
            port,
        }
        EvtchnStatus = "struct evtchn_status" {
            dom, port, status, vcpu, u0 = "u.pirq", u1 = "u.interdomain.port",
        }
        EvtchnBindVcpu = "struct evtchn_bind_vcpu" {
            port, vcpu,
        }
        EvtchnUnmask = "struct evtchn_unmask" {
            port,
        }
        EvtchnReset = "struct evtchn_reset" {
            dom,
        }
        EvtchnInitControl = "struct evtchn_init_control" {
            control_gfn, offset, vcpu, link_bits,
        }
        EvtchnExpandArray = "struct evtchn_expand_array" {
            array_gfn,
        }
        EvtchnSetPriority = "struct evtchn_set_priority" {
            port, priority,
        }
        EvtchnFifoControlBlock = "struct evtchn_fifo_control_block" {
            ready, head,
        }
    }
    grant {
        GrantEntryV1 = "struct grant_entry_v1" {
            flags, domid, frame,
        }
        GrantEntryV2 = "union grant_entry_v2" {
            flags = "hdr.flags", domid = "hdr.domid", page_off = "sub_page.page_off", length = "sub_page.length",
            frame = "sub_page.frame",
        }
        GnttabMapGrantRef = "struct gnttab_map_grant_ref" {
            host_addr, flags, r#ref = "ref", dom, status, handle, dev_bus_addr,
        }
        GnttabUnmapGrantRef = "struct gnttab_unmap_grant_ref" {
            host_addr, dev_bus_addr, handle, status,
        }
        GnttabUnmapAndReplace = "struct gnttab_unmap_and_replace" {
            host_addr, new_addr, handle, status,
        }
        GnttabSetupTable = "struct gnttab_setup_table" {
            dom, nr_frames, status, frame_list,
        }
        GnttabDumpTable = "struct gnttab_dump_table" {
            dom, status,
        }
        GnttabTransfer = "struct gnttab_transfer" {
            mfn, domid, r#ref = "ref", status,
        }
        GnttabCopyPtr = "struct gnttab_copy_ptr" {
            u, domid, offset,
        }
        GnttabCopy = "struct gnttab_copy" {
            source, dest, len, flags, status,
        }
        GnttabQuerySize = "struct gnttab_query_size" {
            dom, nr_frames, max_nr_frames, status,
        }
        GnttabSetVersion = "struct gnttab_set_version" {
            version,
        }
        GnttabGetStatusFrames = "struct gnttab_get_status_frames" {
            nr_frames, dom, status, frame_list,
        }
        GnttabGetVersion = "struct gnttab_get_version" {
            dom, pad, version,
        }
        GnttabSwapGrantRef = "struct gnttab_swap_grant_ref" {
            ref_a, ref_b, status,
        }
        GnttabCacheFlush = "struct gnttab_cache_flush" {
            a, offset, length, op,
        }
    }
    hvm_start {
        HvmStartInfo = "struct hvm_start_info" {
            magic, version, flags, nr_modules, modlist_paddr, cmdline_paddr, rsdp_paddr,
            memmap_paddr, memmap_entries, reserved,
        }
        HvmModlistEntry = "struct hvm_modlist_entry" {
            paddr, size, cmdline_paddr, reserved,
        }
        HvmMemmapTableEntry = "struct hvm_memmap_table_entry" {
            addr, size, kind = "type", reserved,
        }
    }
    memory {
        XenMemoryReservation = "struct xen_memory_reservation" {
            extent_start, nr_extents, extent_order, mem_flags, domid,
        }
        XenMemoryExchange = "struct xen_memory_exchange" {
            in_ = "in", out, nr_exchanged,
        }
        XenMemoryDomain = "struct xen_memory_domain" {
            domid,
        }
        XenMachphysMfnList = "struct xen_machphys_mfn_list" {
            max_extents, extent_start, nr_extents,
        }
        XenMachphysMapping = "struct xen_machphys_mapping" {
            v_start, v_end, max_mfn,
        }
        XenAddToPhysmap = "struct xen_add_to_physmap" {
            domid, size, space, idx, gpfn,
        }
        XenRemoveFromPhysmap = "struct xen_remove_from_physmap" {
            domid, gpfn,
        }
        XenMemoryMap = "struct xen_memory_map" {
            nr_entries, buffer,
        }
        XenForeignMemoryMap = "struct xen_foreign_memory_map" {
            domid, map,
        }
        XenVmemrange = "struct xen_vmemrange" {
            start, end, flags, nid,
        }
        XenVnumaTopologyInfo = "struct xen_vnuma_topology_info" {
            domid, pad, nr_vnodes, nr_vcpus, nr_vmemranges, vdistance, vcpu_to_vnode, vmemrange,
        }
    }
    mmu {
        MmuUpdate = "struct mmu_update" {
            ptr, val,
        }
        MmuextOp = "struct mmuext_op" {
            cmd, arg1, arg2,
        }
    }
    multicall {
        MulticallEntry = "struct multicall_entry" {
            op, result, args,
        }
    }
    nmi {
        XennmiCallback = "struct xennmi_callback" {
            handler_address, pad,
        }
    }
    physdev {
        PhysdevEoi = "struct physdev_eoi" {
            irq,
        }
        PhysdevPirqEoiGmfn = "struct physdev_pirq_eoi_gmfn" {
            gmfn,
        }
        PhysdevIrqStatusQuery = "struct physdev_irq_status_query" {
            irq, flags,
        }
        PhysdevSetIopl = "struct physdev_set_iopl" {
            iopl,
        }
        PhysdevSetIobitmap = "struct physdev_set_iobitmap" {
            bitmap, nr_ports,
        }
        PhysdevMapPirq = "struct physdev_map_pirq" {
            domid, kind = "type", index, pirq, bus, devfn, entry_nr, table_base,
        }
        PhysdevUnmapPirq = "struct physdev_unmap_pirq" {
            domid, pirq,
        }
    }
    sched {
        SchedShutdown = "struct sched_shutdown" {
            reason,
        }
        SchedPoll = "struct sched_poll" {
            ports, nr_ports, timeout,
        }
        SchedRemoteShutdown = "struct sched_remote_shutdown" {
            domain_id, reason,
        }
        SchedWatchdog = "struct sched_watchdog" {
            id, timeout,
        }
        SchedPinOverride = "struct sched_pin_override" {
            pcpu,
        }
    }
    shared_info {
        VcpuTimeInfo = "struct vcpu_time_info" {
            version, pad0, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags, pad1,
        }
        ArchVcpuInfo = "struct arch_vcpu_info" {
            cr2, pad,
        }
        VcpuInfo = "struct vcpu_info" {
            evtchn_upcall_pending, evtchn_upcall_mask, evtchn_pending_sel, arch, time,
        }
        ArchSharedInfo = "struct arch_shared_info" {
            max_pfn, pfn_to_mfn_frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation,
        }
        SharedInfo = "struct shared_info" {
            vcpu_info, evtchn_pending, evtchn_mask, wc_version, wc_sec, wc_nsec, wc_sec_hi, arch,
        }
    }
    start_info {
        StartInfo = "struct start_info" {
            magic, nr_pages, shared_info, flags, store_mfn, store_evtchn, console_mfn = "console.domU.mfn",
            console_evtchn = "console.domU.evtchn", pt_base, nr_pt_frames, mfn_list, mod_start, mod_len, cmd_line,
            first_p2m_pfn, nr_p2m_frames,
        }
        MultibootModList = "struct xen_multiboot_mod_list" {
            mod_start, mod_end, cmdline, pad,
        }
    }
    trap {
        TrapInfo = "struct trap_info" {
            vector, flags, cs, address,
        }
        IretContext = "struct iret_context" {
            rax, r11, rcx, flags, rip, cs, rflags, rsp, ss,
        }
    }
    vcpu {
        VcpuRunstateInfo = "struct vcpu_runstate_info" {
            state, state_entry_time, time,
        }
        VcpuRegisterRunstateMemoryArea = "struct vcpu_register_runstate_memory_area" {
            addr,
        }
        VcpuSetPeriodicTimer = "struct vcpu_set_periodic_timer" {
            period_ns,
        }
        VcpuSetSingleshotTimer = "struct vcpu_set_singleshot_timer" {
            timeout_abs_ns, flags,
        }
        VcpuRegisterVcpuInfo = "struct vcpu_register_vcpu_info" {
            mfn, offset, rsvd,
        }
        VcpuGetPhysid = "struct vcpu_get_physid" {
            phys_id,
        }
        VcpuRegisterTimeMemoryArea = "struct vcpu_register_time_memory_area" {
            addr,
        }
    }
    version {
        XenCompileInfo = "struct xen_compile_info" {
            compiler, compile_by, compile_domain, compile_date,
        }
        XenPlatformParameters = "struct xen_platform_parameters" {
            virt_start,
        }
        XenFeatureInfo = "struct xen_feature_info" {
            submap_idx, submap,
        }
        XenBuildId = "struct xen_build_id" {
            len,
        }
    }
    xenstore {
        XsdSockmsg = "struct xsd_sockmsg" {
            kind = "type", req_id, tx_id, len,
        }
        XenstoreDomainInterface = "struct xenstore_domain_interface" {
            req, rsp, req_cons, req_prod, rsp_cons, rsp_prod, server_features, connection, error,
        }
    }
}

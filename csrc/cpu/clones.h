// SNN_CLONES: one function compiled for several instruction sets, chosen when the library is
// loaded.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define SNN_X86_LEVELS
#define SNN_CLONES [[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#else
#define SNN_CLONES
#endif

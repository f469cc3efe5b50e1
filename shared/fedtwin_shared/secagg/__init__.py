"""Secure aggregation: the coordinator learns the sum of the sites' integer vectors and nothing else about any of them.

Protocol: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning" (CCS 2017), figure 4,
the variant against an active adversary, on the complete graph, for at most 200 sites, over Z_2^64. Pure functions from
state and bytes to state and bytes: whoever calls them keeps the state, and makes it durable before an answer leaves.

    set-up, once for R steps                          each step, with one instance of the set-up
    0  AdvertiseKeys   (`advertising`)                2  MaskedInputCollection  (`masking`)
    1  ShareKeys       (`sharing`)                    3  ConsistencyCheck       (`agreement`)
                                                      4  Unmasking              (`unmasking`)

Security argument. n sites, of which c collude with each other and with the coordinator, who is malicious; t shares
recover a secret; d sites may be lost; `Terms` enforces 2t > n + c, n - d >= t and t > c.

1. An instance is one run of Bonawitz et al. whose rounds 0 and 1 happened early. Its X25519 key, its seed and their
   shares serve no other instance, so nothing that another step reveals says anything about them: the proof of theorem
   6.5 there applies to each instance alone. One key for many steps would not do: the first site that is lost has its
   key rebuilt, and with it all its past masks. The one key of a set-up that serves all instances encrypts shares, is
   never shared, and is forgotten before the first step.
2. Keys are signed under the pinned keys of the roster. Everything that a site believes about the set-up (all
   advertised keys, all members that shared) is digested into the *roll*; the roll and the step (plan, round, attempt,
   model, length, instance) are digested into the *binding*. Masks are derived from the binding, and every message of
   a step is signed over it. Two sites that were shown different keys, members, models or rounds have different
   bindings: neither accepts a word of the other, and nothing is unmasked.
3. A site masks once, agrees to one survivor set once and reveals once, and for each peer reveals a share of the seed
   (a survivor) or of the key (anybody else), never both. It reveals only with t signatures, its own included, on the
   very same survivors and binding. Two different survivor sets would need 2t signatures, of which n - c honest sites
   give one each and c colluders two each: at most n + c, which is less. So there is one survivor set, it has at least
   n - d members, and of each honest site either the seed or the key can be rebuilt, not both.
4. What remains hidden: each honest survivor's vector, up to the sum over the honest survivors, of which there are at
   least n - d - c. Between any two of them stands a mask from a key that neither shared with t sites.
5. What an insider can still do: send any vector (clipping binds honest sites only) or stop the round. Wrong shares are
   detected and named: dealers sign a commitment to every share, to every seed and to every key. A commitment hides its
   256 bits as a hash does; everything else is hidden as X25519, HKDF-SHA256, AES-256 and the roster's Ed25519 hide it.
"""

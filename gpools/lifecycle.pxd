cdef class Entry:
    cdef object __weakref__
    cdef public long born
    cdef public double expires
    cdef public object find
    cdef public object holder
    cdef public object key
    cdef public bint reported
    cdef public double since
    cdef public object state
    cdef public double trusted_until
    cdef public long uses


cdef class Lifecycle:
    cdef public double check_after
    cdef public long generation
    cdef public double max_age
    cdef public double max_idle
    cdef public double suspect

    cpdef shelve(self, Entry entry, double now)
    cpdef verdict(self, Entry entry, double now, bint spare=*)

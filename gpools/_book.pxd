from gpools.lifecycle cimport Lifecycle


cdef class Book:
    cdef public object check_timeout
    cdef public bint count_holds
    cdef public object counters
    cdef public object creator
    cdef public object destroy_timeout
    cdef public object emptied
    cdef public Py_ssize_t fewest_idle
    cdef public object filled
    cdef public dict going
    cdef public dict items
    cdef public object leak_after
    cdef public Lifecycle life
    cdef public object limiter
    cdef public object listener
    cdef public object max_waiting
    cdef public object sweeper
    cdef public unsigned long thread
    cdef public object timeout
    cdef public dict tokens

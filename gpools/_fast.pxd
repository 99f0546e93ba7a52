cimport cython

from gpools cimport _direct
from gpools._book cimport Book
from gpools._line cimport Line
from gpools.lifecycle cimport Entry, Lifecycle


@cython.freelist(8)
cdef class Item:
    cdef public object _item
    cdef public object _pool
    cdef public object _timeout


cdef class Use(Item):
    cdef public Entry _entry
    cdef public long _uses

    cpdef bint out(self)


cdef class Core:
    cdef public Line _line
    cdef public bint order_as_stack


cdef class ConnectionCore(Core):
    cdef public Book _book


cpdef hold(Book book, Line line, Entry entry, double now)
cpdef Entry take_back(ConnectionCore pool, item)
cpdef shelve(ConnectionCore pool, Entry entry, item)
